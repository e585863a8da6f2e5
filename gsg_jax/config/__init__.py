"""Configs: every key, the recipes, and how a config is loaded and checked."""
