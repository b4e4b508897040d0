#include "netvlad/artifact.h"

#include <cstdint>
#include <fstream>
#include <system_error>

#include "netvlad/error.h"
#include "netvlad/json.h"
#include "netvlad/sha256.h"

namespace netvlad {
namespace {

constexpr const char* schema = "netvlad-deploy/artifact/4";
constexpr std::uintmax_t most_sidecar_bytes = std::uintmax_t{16} << 20;
constexpr const char* remedy = ": export or build again";

std::string read_file(const std::filesystem::path& path, std::uintmax_t most_bytes) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) throw Error(path.string() + " is missing, or no file");
  const std::uintmax_t size = std::filesystem::file_size(path, failed);
  if (failed || size > most_bytes) {
    throw Error(path.string() + " has " + std::to_string(size) + " bytes, at most " + std::to_string(most_bytes) +
                " are read");
  }
  std::string content(static_cast<std::size_t>(size), '\0');
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(content.data(), static_cast<std::streamsize>(content.size()))) {
    throw Error(path.string() + " cannot be read");
  }
  return content;
}

// Returns the record of a sidecar. Its hash is that of its compact text without the hash itself, and its file is
// the record with two spaces of indentation: netvlad_deploy/support/sidecar.py writes both.
Json unsealed(const std::string& content) {
  Json record = Json::parse(content);
  if (!record.is_object()) throw Error("it is no object");
  constexpr const char* seal = "sidecar_sha256";
  if (record.indented() + "\n" != content || sha256(record.compact(seal)) != record.at(seal).string()) {
    throw Error("it was changed after it was written");
  }
  const std::string& found = record.at("schema").string();
  if (found != schema) throw Error("its schema is " + found.substr(0, 80) + ", expected " + schema);
  return record;
}

std::optional<Size> size_of(const Json& value) {
  if (value.is_null()) return std::nullopt;
  const auto& lengths = value.items();
  if (lengths.size() != 2) throw Error("expected a height and a width");
  return Size{lengths[0].whole(), lengths[1].whole()};
}

std::optional<std::size_t> length_of(const Json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.whole());
}

Preparation preparation_of(const Json& record) {
  const Json& resize = record.at("resize");
  Preparation rule;
  rule.stretched = size_of(resize.at("size"));
  rule.cover = size_of(resize.at("cover"));
  rule.longest = length_of(resize.at("longest"));
  rule.shortest = length_of(resize.at("shortest"));
  rule.crop = size_of(record.at("crop"));
  if (!resize.at("filter").is_null()) rule.filter = filter_of(resize.at("filter").string());
  return rule;
}

// Sidecars from before there were layouts name none, and their images are uint8.
Layout layout_of(const Json& record) {
  const Json* found = record.find("layout");
  const std::string name = found == nullptr ? "uint8" : found->string();
  if (name == "uint8") return {};
  if (name == "rgb") return {true, false, false};
  if (name == "grey") return {true, true, false};
  if (name == "rgb-nchw") return {true, false, true};
  if (name == "grey-nchw") return {true, true, true};
  throw Error("the layout " + name.substr(0, 40) + " is not known to this runner: export with another --layout");
}

void read_tensors(const Json& record, Artifact& artifact) {
  const auto& inputs = record.at("inputs").items();
  const auto& outputs = record.at("outputs").items();
  if (record.at("images").is_null() || inputs.size() != 1) {
    throw Error("it takes local descriptors, not images: export a checkpoint with its backbone");
  }
  if (outputs.size() != 1) throw Error("it has several outputs, or none: export one head alone");
  artifact.input = inputs[0].string();
  artifact.output = outputs[0].string();
  artifact.layout = layout_of(record.at("images"));
  const std::string wanted = artifact.layout.is_float ? "float32" : "uint8";
  if (record.at("dtypes").at(artifact.input).string() != wanted) throw Error("its images are not " + wanted);
  const std::string& dtype = record.at("dtypes").at(artifact.output).string();
  if (dtype != "float32") throw Error("its descriptor is " + dtype + ", expected float32: leave --output-dtype out");
}

Artifact described(const Json& record) {
  Artifact artifact;
  read_tensors(record, artifact);
  artifact.kind = record.at("kind").string();
  artifact.precision = record.at("precision").string();
  artifact.preparation = preparation_of(record.at("images"));
  if (artifact.kind == "engine") artifact.engine = EngineRecord::of(record);
  const Json* external = record.find("external_data");
  if (external != nullptr && !external->is_null()) {
    throw Error("its weights stand in a file of their own, which this runner does not read: build an engine of it");
  }
  return artifact;
}

}  // namespace

Artifact load_artifact(const std::filesystem::path& path) {
  std::filesystem::path beside = path;
  beside += ".json";
  const std::string text = read_file(beside, most_sidecar_bytes);
  Artifact artifact;
  std::string expected;
  std::size_t bytes = 0;
  try {
    const Json record = unsealed(text);
    artifact = described(record);
    expected = record.at("sha256").string();
    bytes = record.at("size_bytes").whole();
  } catch (const Error& error) {
    throw Error(beside.string() + ": " + error.what() + remedy);
  }
  artifact.path = path;
  artifact.content = read_file(path, bytes);
  if (sha256(artifact.content) != expected) {
    throw Error(path.string() + " is not the file that its sidecar describes" + remedy);
  }
  return artifact;
}

}  // namespace netvlad
