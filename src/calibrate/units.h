// What has a basis of its own in the model's objective: the keys of one kv head, the values of one,
// or, jointly, the values of all heads of a layer.
#pragma once
#include "model/config.h"

namespace stief {

struct Units {
    int L, G, d;
    bool joint;  // values of a layer have one basis, G·d wide

    struct Unit {
        int l, g;  // g: of the first head
        bool values;
    };

    Units(const Config& c, bool joint_values) : L(c.L), G(c.G), d(c.d), joint(joint_values) {}
    size_t of_layer() const { return size_t(joint ? G + 1 : 2 * G); }
    size_t count() const { return size_t(L) * of_layer(); }
    // The unit of that head's keys or values.
    size_t of(int l, int g, bool values) const {
        size_t first = size_t(l) * of_layer();
        if (!joint) return first + 2 * size_t(g) + values;
        return first + size_t(values ? G : g);
    }
    Unit at(size_t u) const {
        int l = int(u / of_layer()), i = int(u % of_layer());
        if (!joint) return {l, i / 2, i % 2 != 0};
        return i < G ? Unit{l, i, false} : Unit{l, 0, true};
    }
    // Coordinates of a token before those of unit u.
    size_t first(size_t u) const {
        Unit one = at(u);
        size_t heads = joint ? size_t(2 * one.l * G + (one.values ? G : one.g)) : u;
        return heads * size_t(d);
    }
    size_t width(size_t u) const { return size_t(joint && at(u).values ? G * d : d); }
};

}  // namespace stief
