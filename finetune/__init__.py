"""What changes weights: recipes, augmentation, sampling, losses and the trainer."""
