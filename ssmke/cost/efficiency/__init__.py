"""Operations of a pair, and what a device could do at best."""
