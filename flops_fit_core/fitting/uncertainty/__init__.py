"""Noise models, outliers, bootstrap refits and profile-likelihood intervals."""
