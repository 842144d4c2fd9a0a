// Compiles what follows for NEON, which every aarch64 CPU has: like generic.inl, with tiles for its 32 registers.
#define VECTOR_BYTES 16
#define TILE_ROWS 12
