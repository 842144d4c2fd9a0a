// Ends the target that a file of this folder began.
#if defined(__clang__)
#pragma clang attribute pop
#endif
