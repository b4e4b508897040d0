// The rules are those of netvlad_deploy/tensorrt/loader.py and spec/build_options.py.
#include "netvlad/engine_record.h"

#include <algorithm>
#include <limits>

#include "netvlad/error.h"

namespace netvlad {
namespace {

using Numbers = std::vector<unsigned long>;

constexpr const char* flavor = "tensorrt";
const Numbers ampere = {8, 0};  // least compute capability of a GPU that runs a hardware-compatible engine

// Returns the numbers at the start of a version, as 10, 2, 0 of `10.2.0.post1`; those of more than 9 digits end it.
Numbers numbers_of(const std::string& version) {
  Numbers numbers;
  for (std::size_t at = 0; at < version.size();) {
    const std::size_t dot = std::min(version.find('.', at), version.size());
    const std::string part = version.substr(at, dot - at);
    const bool is_number = std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (part.empty() || part.size() > 9 || !is_number) break;
    numbers.push_back(std::stoul(part));
    at = dot + 1;
  }
  return numbers;
}

// The package of Python may name fewer numbers than the library has: 10.3.0 is any build of it.
bool same_version(const std::string& built, const std::string& running, bool or_later) {
  const Numbers wanted = numbers_of(built);
  Numbers found = numbers_of(running);
  if (wanted.size() < 3 || found.size() < 3) return false;
  found.resize(std::min(found.size(), wanted.size()));
  return found == wanted || (or_later && found.front() == wanted.front() && wanted < found);
}

AxisRange range_of(const Json& record) {
  const AxisRange range{record.at("min").whole(), record.at("opt").whole(), record.at("max").whole()};
  if (range.least < 1 || range.least > range.usual || range.usual > range.most) throw Error("a profile has no order");
  return range;
}

double largest(const EngineProfile& profile) {  // as double, since a product of sidecar numbers may be too large
  return static_cast<double>(profile.batch.most) * static_cast<double>(profile.height.most) *
         static_cast<double>(profile.width.most);
}

}  // namespace

std::string EngineProfile::text() const {
  const auto joined = [this](std::size_t AxisRange::*end) {
    return std::to_string(batch.*end) + "x" + std::to_string(height.*end) + "x" + std::to_string(width.*end);
  };
  return joined(&AxisRange::least) + " to " + joined(&AxisRange::most);
}

EngineRecord EngineRecord::of(const Json& sidecar) {
  const Json& options = sidecar.at("options");
  const std::string& found = options.at("flavor").string();
  if (found != flavor) throw Error("its engine is one of " + found.substr(0, 40) + ", this runner takes " + flavor + "'s");
  EngineRecord record;
  record.version = sidecar.at("versions").at(flavor).string();
  const Json& gpu = sidecar.at("gpu");
  if (gpu.is_null()) throw Error("it does not say which GPU its engine was built for");
  record.gpu = {gpu.at("name").string(), gpu.at("compute_capability").string()};
  record.hardware_compatible = options.at("hardware_compatible").boolean();
  record.version_compatible = options.at("version_compatible").boolean();
  for (const Json& each : options.at("profiles").items()) {
    record.profiles.push_back({range_of(each.at("batch")), range_of(each.at("height")), range_of(each.at("width"))});
  }
  constexpr std::size_t most = std::numeric_limits<int>::max();
  if (record.profiles.empty() || record.profiles.size() > most) throw Error("its engine has no profiles");
  return record;
}

std::size_t EngineRecord::fitting_profile(Size size) const {
  std::size_t best = profiles.size();
  std::string all;
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    all += (i == 0 ? "" : "; ") + profiles[i].text();
    const bool is_better = best == profiles.size() || largest(profiles[i]) < largest(profiles[best]);
    if (profiles[i].holds(size) && is_better) best = i;
  }
  if (best == profiles.size()) {
    throw Error("an image of 1x" + std::to_string(size.height) + "x" + std::to_string(size.width) +
                " is outside every profile (" + all + "): build with a wider range");
  }
  return best;
}

std::string EngineRecord::differences(const std::string& running_version, const Gpu& running_gpu) const {
  std::string found;
  if (!same_version(version, running_version, version_compatible)) {
    found = "it was built by " + std::string(flavor) + " " + version + ", this is " + running_version;
  }
  const bool is_same_gpu =
      gpu.name == running_gpu.name && gpu.compute_capability == running_gpu.compute_capability;
  if (hardware_compatible ? numbers_of(running_gpu.compute_capability) < ampere : !is_same_gpu) {
    found += (found.empty() ? "it was built for " : "; it was built for ") + gpu.name + " (" + gpu.compute_capability +
             "), this is " + running_gpu.name + " (" + running_gpu.compute_capability + ")";
  }
  return found;
}

}  // namespace netvlad
