"""The service: a Matcher behind HTTP. See ``docs/service.md``; the extra ``serve`` installs what it needs."""
