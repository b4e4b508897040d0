// A strict reader of JSON that can write what it read in the two layouts of a sidecar.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace netvlad {

// A value of JSON. Numbers and strings keep the text that they were read from, so that they are written the same.
class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // Reads one value and nothing after it but white space; throws Error where the text is not JSON, names a key twice
  // or is nested deeper than 64 values.
  static Json parse(std::string_view text);

  bool is_null() const { return kind_ == Kind::null; }
  bool is_object() const { return kind_ == Kind::object; }

  // Each throws Error if the value is of another kind.
  bool boolean() const;
  std::size_t whole() const;  // a number of 1 to 15 digits and nothing else
  const std::string& string() const;  // UTF-8
  const std::vector<Json>& items() const;
  const Json& at(std::string_view key) const;
  const Json* find(std::string_view key) const;  // null if it is not there

  // The text with two spaces of indentation, and the text without white space and without the member `left_out`.
  std::string indented() const;
  std::string compact(std::string_view left_out = {}) const;

 private:
  friend class JsonReader;

  void write_indented(std::string& out, std::size_t depth) const;
  void write_compact(std::string& out, std::string_view left_out) const;

  Kind kind_ = Kind::null;
  std::string text_;     // as it was read: a number, a string with its quotes, true, false or null
  std::string decoded_;  // of a string
  std::vector<Json> items_;
  std::vector<std::pair<Json, Json>> members_;  // keys are strings
};

}  // namespace netvlad
