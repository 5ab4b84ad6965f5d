// The quantity by which "The risk of KV cache compression" (arXiv 2607.01520) tells texts apart: the
// tail of the spectrum of the response covariance. A head's response of token j to query t is what
// leaving j out would move the output by, to first order,
//     r_j = (a_tj (v_j − o_t))_t,   a_tj = e^{q_t·k_j/√d} / Z_t,   o_t = Σ_j a_tj v_j
// and its tail Σ_{i > K/3} λ_i / K over the eigenvalues of the K × K matrix r_i · r_j. Here K is 64
// tokens spread over the window, the queries are the window's own, and what is returned is the mean
// over layers and kv heads (of each group's first query head).
#pragma once
#include <span>

#include "calibrate/layer_loss.h"

namespace stief {

// ids: at most as many as the pass was made for.
double response_tail(LayerPass& pass, std::span<const Token> ids);

}  // namespace stief
