// What follows is compiled for whatever the build's compiler takes as given: VECTOR_BYTES and the rows of a tile of
// gemm.inl, which fills the registers.
#define VECTOR_BYTES 16
#define TILE_ROWS 6
