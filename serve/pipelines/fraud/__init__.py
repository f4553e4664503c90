"""Scores a card transaction while it is being authorised."""
