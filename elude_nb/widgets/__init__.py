"""Live panels for notebooks: traits and callbacks. What they show is computed by the library and drawn by `tiles`."""

from elude_nb.widgets.panel import GalleryPanel, Panel

__all__ = ["GalleryPanel", "Panel"]
