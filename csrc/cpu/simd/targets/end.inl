// Ends what avx2.inl and its like began.
#if defined(__clang__)
#pragma clang attribute pop
#endif
