// Compiles what follows for the compiler's default target. Every target sets the bytes of a vector, and the rows of a
// tile of gemm.inl, whose sums fill the registers.
#define VECTOR_BYTES 16
#define TILE_ROWS 6
