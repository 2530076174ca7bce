"""A tagger of JoyTag's architecture, from chance, on the photos of Corel5k: `python -m recipes.corel5k`."""
