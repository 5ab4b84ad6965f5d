// Until attention is there: no step can be taken.
#include "cuda_backend.h"

namespace stief {

void CudaBackend::append(const CacheLayer&, const float*, const float*, const Step&) {
    fail("--backend cuda has no attention yet; use --backend cpu");
}
void CudaBackend::attend(float*, const float*, const float*, const CacheLayer&, const Step&) {
    fail("--backend cuda has no attention yet; use --backend cpu");
}

}  // namespace stief
