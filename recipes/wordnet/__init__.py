"""The recipe of the list of WordNet's synset names that ships: `python -m recipes.wordnet`."""
