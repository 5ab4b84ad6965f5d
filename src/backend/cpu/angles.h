// The angles of SPAN positions as columns that a sum over angles is made of (angles_impl.h). Fast pairs
// have their cosines and sines. A slow pair hardly turns within SPAN positions: it is known at a few of
// them, the nodes, and between these a polynomial through them tells it; what a node's value adds to
// each position is one column more. Of SmolLM2's 64 columns 30 are left, of 128 (8B) 41.
#pragma once
#include <cstddef>
#include <vector>

namespace stief {

// Plain members only: the kernels' files may call no inline function of a header.
struct Angles {
    static constexpr int SPAN = 128, NODES = 16, PIECE = 64;   // positions, most nodes, pairs at once

    int half, fast, nodes;       // pairs, those of them that are fast, nodes of the others
    // (2 fast + nodes, SPAN): of up to PIECE fast pairs their cosines, then their sines; ℓ of each node
    const float* column;
    const float* node;           // (2, half − fast, NODES): slow pairs at the nodes; zero beyond them
};

struct AngleTable {
    Angles angles{};             // of what it was made for last

    // rotation (at least SPAN, 2, half): cos and sin of positions from 0 on, a frequency a pair. Made
    // where that is not what it was before.
    const Angles& of(const float* rotation, int half);

  private:
    std::vector<float> known;    // rows 1 and SPAN − 1 of the table that it was made for
    std::vector<float> columns, at_nodes;
};

}  // namespace stief
