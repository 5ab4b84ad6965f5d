// What stief calibrate says of its result.
#pragma once
#include <string>

#include "calibrate/calibrate.h"

namespace stief {

std::string calibration_as_json(const CalibrationResult& result);
// output: the file that was written.
std::string calibration_as_text(const CalibrationResult& result, const std::string& output);

}  // namespace stief
