// The texts that stief calibrate learns from and measures on, as ids of the model at hand.
#pragma once
#include "calibrate/texts.h"
#include "commands/args.h"

namespace stief {

// The files that args name; none: models/calibration.txt in the folder of this program or in one of
// the two above it. Error where that is not there.
std::vector<std::string> calibration_files(const Args& args);

// Each file is a text, or several: marked_text.h. Conversations are in the form of --template or of
// the model's folder; a folder without one, or with one that is not known, gets them as plain text.
// The last tenth of each text is held out (of a short one more, as one sequence of that many tokens
// must fit) unless --holdout names another. Error where one is empty.
CalibrationText read_texts(const Args& args, const std::vector<std::string>& files, int sequence);

}  // namespace stief
