#include "base/signals.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/descriptors.h"

namespace stief {

namespace {

// The name is taken out by whoever comes first, the handler or forget_temporary().
struct Temporary {
    std::atomic<bool> taken{false};
    std::atomic<char*> path{nullptr};
};
Temporary temporaries[32];
std::atomic<char*> last_words{nullptr};

// begin is written last and cleared first: where it is not 0, the rest is whole.
struct Mapping {
    std::atomic<uintptr_t> begin{0};
    uintptr_t end = 0;
    char* path = nullptr;
    bool spare = false;
    std::atomic<bool> lost{false};
};
Mapping mappings[1024];
std::mutex mappings_change;

static_assert(std::atomic<char*>::is_always_lock_free);
static_assert(std::atomic<uintptr_t>::is_always_lock_free);

// ---- called by handlers -------------------------------------------------------------------------

void put(const char* text) {
    ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
    (void)ignored;
}

void remove_temporaries() {
    for (Temporary& one : temporaries)
        if (char* path = one.path.exchange(nullptr)) unlink(path);
}

void on_end(int number) {
    remove_temporaries();
    if (stderr_line_is_open()) put("\n");
    if (char* line = last_words.exchange(nullptr)) put(line);
    raise_default(number);
}

Mapping* mapping_at(const void* address) {
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    for (Mapping& one : mappings) {
        uintptr_t begin = one.begin.load();
        if (begin != 0 && at >= begin && at < one.end) return &one;
    }
    return nullptr;
}

void on_bus(int number, siginfo_t* info, void*) {
    if (info->si_code != BUS_ADRERR) return on_end(number);
    if (replace_lost_mapping(info->si_addr)) return;
    static std::atomic<bool> said{false};
    if (said.exchange(true))
        for (;;) pause();                       // another thread is on its way out
    const Mapping* mapping = mapping_at(info->si_addr);
    remove_temporaries();
    put(stderr_line_is_open() ? "\nerror: " : "error: ");
    put(mapping ? mapping->path : "a mapped file");
    put(": it was cut short, or its disk failed, while it was being read; put the file back and run "
        "again\n");
    _exit(1);
}

}  // namespace

void raise_default(int number) {
    struct sigaction standard = {}, ours;
    standard.sa_handler = SIG_DFL;
    sigaction(number, &standard, &ours);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, number);
    pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    raise(number);
    sigaction(number, &ours, nullptr);           // reached where the default is to go on, or to stop
}

void install_signal_handlers() {
    for (int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGXCPU}) {
        struct sigaction action = {}, before = {};
        sigaction(number, nullptr, &before);
        if (before.sa_handler == SIG_IGN) continue;
        action.sa_handler = on_end;
        action.sa_flags = SA_RESTART;
        sigfillset(&action.sa_mask);
        sigaction(number, &action, nullptr);
    }
    struct sigaction action = {};
    action.sa_handler = SIG_IGN;
    sigaction(SIGXFSZ, &action, nullptr);
    action.sa_sigaction = on_bus;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &action, nullptr);
}

int remember_temporary(const std::string& path) {
    for (int place = 0; place < int(std::size(temporaries)); place++) {
        Temporary& one = temporaries[place];
        if (one.taken.exchange(true)) continue;
        one.path = strdup(path.c_str());
        return place;
    }
    return -1;
}

void forget_temporary(int place) {
    if (place < 0) return;
    std::free(temporaries[place].path.exchange(nullptr));
    temporaries[place].taken = false;
}

void say_if_ended(const std::string& line) {
    std::free(last_words.exchange(line.empty() ? nullptr : strdup((line + "\n").c_str())));
}

bool replace_lost_mapping(const void* address) {
    Mapping* one = mapping_at(address);
    if (!one || !one->spare) return false;
    if (one->lost.exchange(true)) return true;    // another thread's fault; this one is tried again
    uintptr_t begin = one->begin.load();
    void* at = reinterpret_cast<void*>(begin);
    return mmap(at, one->end - begin, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == at;
}

bool mapping_is_lost(const void* begin) {
    const Mapping* one = mapping_at(begin);
    return one && one->lost;
}

static void remember(const void* begin, size_t size, const std::string& path, bool spare) {
    std::lock_guard lock(mappings_change);
    for (Mapping& one : mappings) {
        if (one.begin != 0) continue;
        one.path = strdup(path.c_str());
        one.spare = spare, one.lost = false;
        one.end = reinterpret_cast<uintptr_t>(begin) + size;
        one.begin = reinterpret_cast<uintptr_t>(begin);
        return;
    }
}

void remember_mapping(const void* begin, size_t size, const std::string& path) {
    remember(begin, size, path, false);
}

void remember_spare_mapping(const void* begin, size_t size, const std::string& path) {
    remember(begin, size, path, true);
}

void forget_mapping(const void* begin) {
    std::lock_guard lock(mappings_change);
    for (Mapping& one : mappings) {
        if (one.begin != reinterpret_cast<uintptr_t>(begin)) continue;
        one.begin = 0;
        std::free(one.path);
        return;
    }
}

}  // namespace stief
