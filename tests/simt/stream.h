// Between the two halves of the runtime: runtime.cpp (device, memory) and stream.cpp (order of
// work).
#pragma once
#include <algorithm>
#include <utility>

#include "simt.h"

namespace stief::simt {

// Remembers an error for cudaGetLastError.
cudaError_t result(cudaError_t error);

// A copy to the host: 0xFF until the stream that is at work now is waited for.
void deliver_later(void* to, const void* from, size_t bytes);
void deliver(cudaStream_t stream, bool all);

// Does the work that waits on a stream, on all of them; quietly: what it throws comes at the next
// wait.
void finish(cudaStream_t stream);
// The same up to an event of the stream, and nothing behind it.
void finish_until(cudaEvent_t event);
void finish_all();
void finish_quietly();

bool is_captured(cudaStream_t stream);
// Whether a stream is being captured in a mode that forbids the call; those captures become
// invalid.
bool invalidate_captures();

}  // namespace stief::simt
