"""Search: an index of pictures and captions, what it finds for a text or a picture, and a page to try it on."""
