// Files: what is read is what is there, and what is written is there whole or not at all.
#include "base/file.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace {

void put(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}

std::vector<std::string> list(const std::filesystem::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        names.push_back(entry.path().filename().string());
    return names;
}

// Files of this process end at so many bytes while it lives: a disk that is full at a chosen place.
struct FileSizeLimit {
    rlimit before;
    void (*signal_before)(int);
    explicit FileSizeLimit(rlim_t bytes) : signal_before(std::signal(SIGXFSZ, SIG_IGN)) {
        getrlimit(RLIMIT_FSIZE, &before);
        rlimit limit{bytes, before.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    ~FileSizeLimit() {
        setrlimit(RLIMIT_FSIZE, &before);
        std::signal(SIGXFSZ, signal_before);
    }
};

// Root may do everything; as nobody, rights count. changed: whether there are rights to test.
struct WithoutPrivilege {
    bool root = geteuid() == 0;
    bool changed = !root || seteuid(65534) == 0;
    ~WithoutPrivilege() {
        if (root && changed && seteuid(0) != 0) std::abort();
    }
};

void write_whole(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
}

}  // namespace

TEST_SUITE_BEGIN("base");

TEST_CASE("a file is mapped and read byte for byte, also an empty one") {
    Scratch scratch;
    std::string bytes("a\0b\xff\n", 5), path = scratch.path("f");
    put(path, bytes);
    put(scratch.path("empty"), "");
    CHECK(MappedFile(path).text() == bytes);
    CHECK(read_text(path) == bytes);
    CHECK(read_text(path, 5) == bytes);
    CHECK(MappedFile(scratch.path("empty")).size == 0);
    CHECK(read_text(scratch.path("empty")) == "");
    CHECK(read_text("/dev/null") == "");

    MappedFile a(path), b(std::move(a));
    CHECK(a.data == nullptr);
    CHECK(b.text() == bytes);
}

TEST_CASE("a text larger than the limit is refused, also where its size is not known before") {
    Scratch scratch;
    std::string path = scratch.path("f"), large(300'000, 'x');
    put(path, large);
    CHECK(read_text(path) == large);
    CHECK(read_text(path, 300'000).size() == 300'000);
    CHECK_THROWS_WITH_AS(read_text(path, 299'999), doctest::Contains("larger than 299999"), Error);
    CHECK_THROWS_WITH_AS(read_text("/dev/zero", 100'000), doctest::Contains("larger than"), Error);
}

TEST_CASE("what cannot be opened is an error with its path and the reason") {
    Scratch scratch;
    std::string folder = scratch.folder.string(), none = scratch.path("none"),
                pipe = scratch.path("p");
    REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
    CHECK_THROWS_WITH_AS(MappedFile{none}, doctest::Contains("none: No such file"), Error);
    CHECK_THROWS_WITH_AS(read_text(none), doctest::Contains("none: No such file"), Error);
    CHECK_THROWS_WITH_AS(MappedFile{folder}, doctest::Contains("it is a folder"), Error);
    CHECK_THROWS_WITH_AS(read_text(folder), doctest::Contains("it is a folder"), Error);
    CHECK_THROWS_WITH_AS(MappedFile{pipe}, doctest::Contains("not a regular file"), Error);
    CHECK_THROWS_WITH_AS(MappedFile{"/dev/null"}, doctest::Contains("not a regular file"), Error);
    CHECK(folder_exists(folder));
    CHECK_FALSE(file_exists(folder));
    CHECK_FALSE(file_exists(none));
    CHECK(join("a", "b") == "a/b");
    CHECK(join("a/", "b") == "a/b");
    CHECK(join("", "b") == "b");
}

TEST_CASE("a written file is there after commit and not before, and nothing else is left") {
    Scratch scratch;
    std::string path = scratch.path("f");
    put(path, "old");
    {
        AtomicFile file(path);
        file.write("new");
        CHECK(read_text(path) == "old");
        file.commit();
        CHECK(read_text(path) == "new");
    }
    { AtomicFile(path).write("never committed"); }
    CHECK(read_text(path) == "new");
    CHECK(list(scratch.folder) == std::vector<std::string>{"f"});
}

TEST_CASE("writing keeps the rights of the file it replaces, and the link that leads to it") {
    Scratch scratch;
    std::string path = scratch.path("f"), link = scratch.path("link");
    put(path, "old");
    chmod(path.c_str(), 0640);
    REQUIRE(symlink("f", link.c_str()) == 0);
    write_whole(link, "new");
    CHECK(std::filesystem::is_symlink(link));
    CHECK(read_text(path) == "new");
    struct stat status;
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0640);
}

TEST_CASE("a device is written as it is, not replaced") {
    write_whole("/dev/null", "x");
    CHECK_FALSE(std::filesystem::is_regular_file("/dev/null"));
    CHECK_THROWS_WITH_AS(write_whole("/dev/full", "x"), doctest::Contains("/dev/full: No space"),
                         Error);
    Scratch scratch;
    CHECK_THROWS_WITH_AS(write_whole(scratch.folder.string(), "x"), doctest::Contains("a folder"),
                         Error);
    CHECK_THROWS_WITH_AS(write_whole(scratch.path("no/f"), "x"), doctest::Contains("No such file"),
                         Error);
}

TEST_CASE("a write that fails half way leaves the old file and no temporary") {
    Scratch scratch;
    std::string path = scratch.path("f");
    put(path, "old");
    for (size_t size : {size_t(5'000), size_t(1'000'000)}) {  // fails in commit(), fails in write()
        std::string message;
        {
            FileSizeLimit limit(4096);
            try {
                write_whole(path, std::string(size, 'x'));
            } catch (const Error& error) {
                message = error.what();
            }
        }
        CHECK(message.find("cannot write " + path) == 0);
        CHECK(read_text(path) == "old");
        CHECK(list(scratch.folder) == std::vector<std::string>{"f"});
    }
}

TEST_CASE("a full disk is an error and leaves the old file") {
    Scratch scratch;
    std::string disk = scratch.path("disk");
    std::filesystem::create_directory(disk);
    if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") != 0)
        return skip("needs the right to mount");
    std::string message;
    try {
        write_whole(disk + "/f", "old");
        write_whole(disk + "/f", std::string(1'000'000, 'x'));
    } catch (const Error& error) {
        message = error.what();
    }
    std::string left = read_text(disk + "/f");
    size_t files = list(disk).size();
    umount(disk.c_str());
    CHECK(message.find("No space left") != std::string::npos);
    CHECK(left == "old");
    CHECK(files == 1);
}

TEST_CASE("a folder without rights is an error, for reading and for writing") {
    Scratch scratch;
    put(scratch.path("f"), "x");
    std::filesystem::permissions(scratch.folder, std::filesystem::perms::none);
    std::string reading, writing;
    {
        WithoutPrivilege nobody;
        if (!nobody.changed) return skip("root, and cannot become anybody else");
        try { MappedFile(scratch.path("f")); } catch (const Error& e) { reading = e.what(); }
        try { write_whole(scratch.path("f"), "y"); } catch (const Error& e) { writing = e.what(); }
    }
    std::filesystem::permissions(scratch.folder, std::filesystem::perms::owner_all);
    CHECK(reading.find("Permission denied") != std::string::npos);
    CHECK(writing.find("Permission denied") != std::string::npos);
    CHECK(read_text(scratch.path("f")) == "x");
}

TEST_SUITE_END();
