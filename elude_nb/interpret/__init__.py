"""What a unit stands for: exemplars, profiles, names, attribution."""
