"""Charts: inline SVG for pages, and plots for papers."""
