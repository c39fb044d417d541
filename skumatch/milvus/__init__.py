"""Galleries in Milvus, a cluster or a file: the same commands and answers as in a folder."""
