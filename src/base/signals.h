// What a signal must not leave behind: temporary files, and an end without a word.
//
//   HUP INT QUIT TERM PIPE XCPU   temporary files are removed, one line may be said (say_if_ended), then
//                                 the signal does what it does
//   XFSZ                          ignored: the write fails, and that is an Error
//   BUS                           a mapped file became shorter: one error line, status 1; where the
//                                 file could be spared, zeros take its place
//
// Handlers only read what is registered here, and call what POSIX lets a handler call.
#pragma once
#include <cstddef>
#include <string>

namespace stief {

// Once, in main(). A signal that the caller has switched off (nohup) stays so.
void install_signal_handlers();

// For handlers: the default action of a signal, as if it had never been caught.
void raise_default(int number);

// A file that is removed if a signal ends the program before forget_temporary(). Returns the place
// to give back, −1 where none is free: then a signal leaves the file.
int remember_temporary(const std::string& path);
void forget_temporary(int place);

// One line that such a signal says before it ends the program; "" for none, as at first.
void say_if_ended(const std::string& line);

// A mapping by the name of its file, so that a fault in it can be said.
void remember_mapping(const void* begin, size_t size, const std::string& path);
void forget_mapping(const void* begin);
// One whose loss the program survives: where its disk fails, all of it becomes ordinary memory, zeroed.
void remember_spare_mapping(const void* begin, size_t size, const std::string& path);
// Whether that has happened. begin: of the mapping; false where it is none of these.
bool mapping_is_lost(const void* begin);
// For handlers: makes it happen where the address is in such a mapping.
bool replace_lost_mapping(const void* address);

}  // namespace stief
