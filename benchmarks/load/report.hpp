// The result for machines (JSON, CSV) and for people (a few lines). Takes the merged Tally; called by main.
#pragma once

#include <ostream>

#include "options.hpp"
#include "tally.hpp"

namespace load {

void write_json(std::ostream& out, const Options& options, const Tally& tally, size_t num_bodies);
void write_csv(std::ostream& out, const Tally& tally);
void write_summary(std::ostream& out, const Options& options, const Tally& tally);

}  // namespace load
