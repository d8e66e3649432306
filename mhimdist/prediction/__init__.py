"""Trained models applied to slides: an ensemble's predictions, with what each instance says."""
