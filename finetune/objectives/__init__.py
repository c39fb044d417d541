"""What a fine-tune minimises: one module per objective."""
