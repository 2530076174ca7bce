"""Datasets that taggers are trained on: from images with tags to a folder of tables and small pictures."""
