// What bench measures a model's speed against, on the same machine in the same run: how fast memory
// is read, and how fast matrices are multiplied.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "backend/buffer.h"
#include "forward/transformer.h"

namespace stief {

struct Peaks {
    std::vector<double> bandwidths;    // bytes/s, one for each call
    std::vector<double> matrix_rates;  // multiplications and additions a second
    Buffer block;                      // what the bandwidth is measured on; no cache holds it

    // isa: as --isa names it. exact: the products are to be those of --exact.
    Peaks(Model& of, const std::string& isa, bool exact);
    double bandwidth();
    // On the CPU: the inner loop of the products that prefill is made of, in the nearest cache. On
    // a GPU: what cuBLAS reaches on 8,192³, x rounded to bf16 once for three products.
    double matrix_rate();

  private:
    Model& model;
    std::string isa;
    bool exact;
    Buffer weight, x, out;             // of the products on a device; made when first asked for

    double device_matrix_rate();
};

double seconds_of(const std::function<void()>& work);

}  // namespace stief
