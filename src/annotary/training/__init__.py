"""Training: taggers on cached features now; each file is one kind of model."""
