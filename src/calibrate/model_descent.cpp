#include "calibrate/model_descent.h"

#include "calibrate/stiefel.h"

namespace stief {

Activations full_outputs(ModelBackward& model, const Sequences& learn, const std::string& folder,
                         const std::function<void()>& progress, const ModelBackward::Visit& visit) {
    const Config& c = model.pass.c;
    std::vector<LayerCuts> none(size_t(c.L), LayerCuts(c, false));
    size_t each = size_t(learn.T) * size_t(c.D);
    Activations full(learn.count() * each, folder, false);
    for (size_t s = 0; s < learn.count(); s++) {
        model.there(learn.ids[s], learn.step(s), none, visit);
        model.pass.model.backend->download(full.data + s * each, model.output(learn.T),
                                           each * sizeof(float));
        progress();
    }
    return full;
}

ModelDescent::ModelDescent(ModelBackward& through, const Sequences& learn,
                           const std::string& folder, const std::function<void()>& progress)
    : model(through),
      sequences(learn),
      full(full_outputs(through, learn, folder, progress)) {}

Matrix basis_gradient(const PricedUnit& unit, const std::vector<LayerGradient>& gradient, size_t g,
                      bool values, const std::vector<RowFormat>& format) {
    size_t d = unit.Q.rows;
    Matrix sum(d, d);
    for (size_t age = 0; age < format.size(); age++) {
        const LayerGradient& of = gradient[age];
        const Matrix& of_rows = (values ? of.v : of.k)[g];
        Matrix G = times(times(times(unit.metric.S, of_rows), unit.metric.S_inverse), unit.Q);
        Matrix noise = times(unit.metric.S_inverse, transpose((values ? of.stored_v : of.stored_k)[g]));
        for (size_t i = 0; i < d; i++)
            for (size_t j = 0; j < size_t(format[age].kept()); j++)
                sum(i, j) += G(i, j) + noise(i, j) * unit.spread[j];
    }
    return sum;
}

void ModelDescent::run(const Units& all, std::vector<PricedUnit>& units,
                       const std::vector<std::vector<RowFormat>>& formats,
                       const std::function<std::vector<LayerCuts>()>& cuts_now,
                       const Options& options, const std::function<void()>& progress) {
    LayerPass& pass = model.pass;
    const Config& c = pass.c;
    size_t each = size_t(sequences.T) * size_t(c.D);
    Random random(options.seed);
    std::vector<StiefelState> states;
    for (const PricedUnit& unit : units) states.emplace_back(unit.Q);
    for (int t = 0; t < options.steps; t++) {
        std::vector<LayerCuts> cuts = cuts_now();
        std::vector<std::vector<LayerGradient>> gradient(
            size_t(c.L), std::vector<LayerGradient>(pass.ages(), LayerGradient(c, all.joint)));
        for (int i = 0; i < options.batch; i++) {
            size_t s = random.below(sequences.count());
            model.run_divergence(sequences.ids[s], sequences.step(s), cuts, full.data + s * each,
                                 [&](int l) {
                                     pass.add_basis_gradient(cuts[size_t(l)], gradient[size_t(l)]);
                                 });
            progress();
        }
        double tau = annealed(options.tau, t, options.steps);
        std::vector<StiefelTurn> turns(units.size());
        pass.threads.run(units.size(), [&](size_t u) {
            auto [l, head, values] = all.at(u);
            turns[u] = stiefel_turn(
                states[u],
                basis_gradient(units[u], gradient[size_t(l)], size_t(head), values, formats[u]),
                tau);
        });
        std::vector<Turn> each_turn;
        for (size_t u = 0; u < units.size(); u++)
            if (turns[u].tau != 0) each_turn.push_back({&states[u].Q, &turns[u].W, turns[u].tau});
        pass.ops_back->cayley(each_turn);
        for (size_t u = 0; u < units.size(); u++) units[u].turn_to(states[u].Q);
    }
    for (PricedUnit& unit : units) unit.turn_to(finished(unit.Q, "descent"));
}

}  // namespace stief
