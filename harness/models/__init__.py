"""Models by name: cards know shapes without weights; loading turns a card into a folder and a folder into a model."""
