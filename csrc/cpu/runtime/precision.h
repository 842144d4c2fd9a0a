// PyTorch's precision of float32 products, which libtorch's stable ABI does not tell.
#pragma once

namespace adaftr_fast {

// As how many bfloat16 terms a float32 operand of a product may be taken, by the matmul precision of the CPU (mkldnn),
// which torch.set_float32_matmul_precision sets: 2 for "high" (tf32), 1 for "medium" (bf16), 0, float32 itself, for
// "highest" (ieee) and until read_float32_terms_by is called.
int float32_terms();

// Sets the function that reads it.
void read_float32_terms_by(int (*reader)());

}  // namespace adaftr_fast
