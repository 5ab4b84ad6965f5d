// What the tests of the second seam share.
#pragma once
#include "backend/backward.h"
#include "backends.h"

namespace stief::testing {

// operation(lab, backward, out) in every variant, exact.
template <class F>
void check_backward(const Doubles& want, double tolerance, const Floats& before,
                    const F& operation) {
    check_everywhere(want, tolerance, before, [&](Lab& lab, float* out) {
        lab.backend->exact = true;
        operation(lab, *make_backward(*lab.backend), out);
    });
}

}  // namespace stief::testing
