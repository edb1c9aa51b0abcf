"""What every room needs: argument checks, a progress bar, files."""
