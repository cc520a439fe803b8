"""What a study has trained, taken away: predictions, features, exports."""
