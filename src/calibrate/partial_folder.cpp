// The folder of partial.h: whose it is, who works in it, and what of it may be removed.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/signals.h"
#include "calibrate/partial.h"

namespace stief {

namespace fs = std::filesystem;

static const std::string MARK = "stief-partial 1\n";
static constexpr const char* MARKER = "run";

// Names that only this program gives in a folder of its own.
static bool is_state(const std::string& name) {
    for (const std::string what : {"layers.", "units."})
        if (name.starts_with(what) && name.size() > what.size())
            return name.find_first_not_of("0123456789", what.size()) == name.npos;
    return false;
}
static bool is_temporary(const std::string& name) {
    return name.starts_with(".stief-") && name.ends_with(".tmp");
}

static bool is_marked(int file) {
    std::string text(MARK.size(), '\0');
    return pread(file, text.data(), text.size(), 0) == ssize_t(text.size()) && text == MARK;
}

// The marker of a folder that another run has just removed is no use: false, try again.
static bool try_lock(int file, const std::string& marker, const Partial& partial) {
    if (flock(file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        fail("%s: another run is working there, on the same -o %s; wait for it or choose another name",
             partial.folder.c_str(), partial.output.c_str());
    struct stat ours;
    std::optional<FileId> named = file_id(marker);
    return fstat(file, &ours) == 0 && named &&
           *named == FileId{uint64_t(ours.st_dev), uint64_t(ours.st_ino)};
}

Partial::Partial(const std::string& name) : output(name), folder(name + ".partial") {
    std::string marker = join(folder, MARKER);
    for (int attempt = 0; lock < 0 && attempt < 100; attempt++) {
        bool made = mkdir(folder.c_str(), 0777) == 0;
        check(made || errno == EEXIST, "%s: cannot be made: %s", folder.c_str(),
              std::strerror(errno));
        std::error_code failed;
        bool empty = made || fs::is_empty(folder, failed);
        if (failed == std::errc::no_such_file_or_directory) continue;
        check(empty || file_exists(marker),
              "%s exists and was not made by stief calibrate; move it away or choose another -o",
              folder.c_str());
        int file = open(marker.c_str(), O_RDWR | O_CLOEXEC | (empty ? O_CREAT : 0), 0666);
        if (file < 0 && errno == ENOENT) continue;           // another run has just removed it
        check(file >= 0, "%s: cannot be written: %s", marker.c_str(), std::strerror(errno));
        struct Closed {
            int& fd;
            ~Closed() {
                if (fd >= 0) close(fd);
            }
        } closed{file};
        if (!try_lock(file, marker, *this)) continue;
        if (!is_marked(file)) {
            struct stat status;
            check(fstat(file, &status) == 0 && status.st_size == 0,
                  "%s is not of stief calibrate; move it away or choose another -o",
                  marker.c_str());
            bool written = write(file, MARK.data(), MARK.size()) == ssize_t(MARK.size());
            check(written, "%s: cannot be written: %s", marker.c_str(), std::strerror(errno));
        }
        std::swap(lock, file);
    }
    check(lock >= 0, "%s: other runs make and remove it all the time", folder.c_str());
}

Partial::~Partial() {
    say_if_ended("");
    if (lock < 0) return;
    if (some_state().empty()) remove_own(true);
    close(lock);
}

std::string Partial::some_state() const {
    std::error_code failed;
    for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end;
         entry.increment(failed))
        if (is_state(entry->path().filename().string())) return entry->path().string();
    return "";
}

void Partial::begin(uint64_t run, bool resume) {
    key = run;
    if (!resume) remove_own(false);
    if (std::string one = some_state(); !one.empty()) read_numbers(one);    // of this run, or an Error
    say_what_is_kept();
}

void Partial::say_what_is_kept() const {
    say_if_ended(!some_state().empty()
                     ? "what is done is kept in " + folder + ": the same command with --resume goes on"
                     : "nothing was finished yet; " + folder + " may be removed");
}

// What is left behind there is no harm, so that failures are passed over.
void Partial::remove_own(bool all) const {
    std::error_code failed;
    std::vector<fs::path> own;
    for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end;
         entry.increment(failed)) {
        std::string name = entry->path().filename().string();
        if (is_state(name) || is_temporary(name)) own.push_back(entry->path());
    }
    if (all) own.push_back(join(folder, MARKER));
    for (const fs::path& one : own) unlink(one.c_str());
    if (all) rmdir(folder.c_str());
}

void Partial::remove() {
    say_if_ended("");
    remove_own(true);
    close(std::exchange(lock, -1));
}

}  // namespace stief
