"""Pretrained encoders from open_clip, timm and transformers, each library behind one module."""
