// The test program. Options of its own: --gpu makes a missing device a failure, so that a machine
// with a GPU cannot pass by skipping; --gpu=only the same, and what every backend does is asked of the
// device alone, for tools that make it slow; --smollm2=FOLDER says where SmolLM2-135M-Instruct lies;
// --jobs=N runs N test cases at once, each in a process; everything else is doctest's (-ts=cache,
// -tc="*name*").
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdio>

#include "backend/backend.h"
#include "jobs.h"
#include "testing.h"

namespace stief::testing {

static Tally tally;  // of this process

std::string shared(const std::string& path) {
    std::string full = "../shared/" + path;
    return std::filesystem::exists(full) ? full : "";
}

static std::string smollm2_option;

std::string smollm2() {
    return smollm2_option.empty() ? shared("models/smollm2/built") : smollm2_option;
}

static bool gpu_only = false;

bool only_gpu() {
    return gpu_only;
}

void skip(const std::string& why) {
    tally.skipped++;
    std::printf("skipped: %s (%s)\n", doctest::getContextOptions()->currentTest->m_name,
                why.c_str());
}

// Counts test cases for the closing line, and how many there are to run.
struct Counter : doctest::IReporter {
    static inline unsigned cases = 0;
    explicit Counter(const doctest::ContextOptions&) {}
    void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
        (stats.failure_flags ? tally.failed : tally.passed)++;
    }
    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_run_end(const doctest::TestRunStats& stats) override {
        cases = stats.numTestCasesPassingFilters;
    }
    void test_case_start(const doctest::TestCaseData&) override {}
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_exception(const doctest::TestCaseException&) override {}
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData&) override {}
    void log_message(const doctest::MessageData&) override {}
    void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("counter", 1, Counter);

// What --gpu asks for: that tests of every backend did run on a device.
static bool gpu_answers() {
    try {
        Threads threads(1);
        std::unique_ptr<Backend> backend = make_backend({.name = "cuda"}, threads);
        std::printf("--gpu: tests ran on %s\n", backend->device.c_str());
        return true;
    } catch (const Error& error) {
        std::printf("--gpu: no test ran on a device: %s\n", error.what());
        return false;
    }
}

// Every test case in one of several processes.
static void run_jobs(int jobs, int argc, char** argv) {
    tally = hand_out(jobs, [&](int number, Tally& one) {
        doctest::Context context(argc, argv);
        context.setOption("first", number);
        context.setOption("last", number);
        context.setOption("minimal", true);
        tally = {};
        context.run();
        one = tally;
        return unsigned(number) < Counter::cases;
    });
    if (tally.lost) std::printf("%d processes ended within a test case\n", tally.lost);
}

}  // namespace stief::testing

int main(int argc, char** argv) {
    using namespace stief::testing;
    bool gpu = false;
    int jobs = 1;
    for (int i = 1; i < argc; i++) {
        std::string one = argv[i];
        if (one.starts_with("--smollm2=")) smollm2_option = argv[i] + 10;
        if (one.starts_with("--jobs=")) jobs = std::atoi(argv[i] + 7);
        gpu |= one == "--gpu" || one == "--gpu=only", gpu_only |= one == "--gpu=only";
    }
    if (jobs > 1) {
        run_jobs(jobs, argc, argv);
    } else {
        doctest::Context context(argc, argv);
        int status = context.run();
        if (context.shouldExit()) return status;
    }
    if (gpu && !gpu_answers()) tally.failed++;
    std::printf("%d passed, %d failed, %d skipped\n", tally.passed - tally.skipped, tally.failed,
                tally.skipped);
    return tally.failed > 0;
}
