#include "netvlad/json.h"

#include <algorithm>
#include <cstdint>

#include "netvlad/error.h"

namespace netvlad {
namespace {

constexpr std::size_t most_depth = 64;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Appends a code point as UTF-8. Source: RFC 3629, section 3.
void append_utf8(std::string& out, std::uint32_t point) {
  const auto put = [&out](std::uint32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xc0 | point >> 6);
    put(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    put(0xe0 | point >> 12);
    put(0x80 | (point >> 6 & 0x3f));
    put(0x80 | (point & 0x3f));
  } else {
    put(0xf0 | point >> 18);
    put(0x80 | (point >> 12 & 0x3f));
    put(0x80 | (point >> 6 & 0x3f));
    put(0x80 | (point & 0x3f));
  }
}

}  // namespace

// Source: RFC 8259.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) fail("more text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error("not JSON: " + std::string(what) + " at byte " + std::to_string(at_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  bool taken(char c) {
    skip_space();
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }

  Json read(std::size_t depth) {
    if (depth > most_depth) fail("values are nested too deep");
    skip_space();
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return string();
      case 't':
        return word("true", Json::Kind::boolean);
      case 'f':
        return word("false", Json::Kind::boolean);
      case 'n':
        return word("null", Json::Kind::null);
      default:
        return number();
    }
  }

  Json word(std::string_view expected, Json::Kind kind) {
    if (text_.substr(at_, expected.size()) != expected) fail("an unknown word");
    at_ += expected.size();
    Json value;
    value.kind_ = kind;
    value.text_ = expected;
    return value;
  }

  void digits() {
    if (!is_digit(peek())) fail("a digit is missing");
    while (is_digit(peek())) ++at_;
  }

  Json number() {
    const std::size_t start = at_;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      digits();
    }
    if (peek() == '.') {
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    Json value;
    value.kind_ = Json::Kind::number;
    value.text_ = text_.substr(start, at_ - start);
    return value;
  }

  std::uint32_t four_hex() {
    std::uint32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      const std::size_t digit = std::string_view("0123456789abcdef").find(c >= 'A' && c <= 'F' ? char(c + 32) : c);
      if (at_ == text_.size() || digit == std::string_view::npos) fail("four hexadecimal digits are missing");
      unit = unit << 4 | static_cast<std::uint32_t>(digit);
      ++at_;
    }
    return unit;
  }

  void escape(std::string& out) {
    ++at_;
    const char c = peek();
    ++at_;
    if (c != 'u') {
      const std::size_t which = std::string_view("\"\\/bfnrt").find(c);
      if (c == '\0' || which == std::string_view::npos) fail("an unknown escape");
      out.push_back("\"\\/\b\f\n\r\t"[which]);
      return;
    }
    std::uint32_t point = four_hex();
    if (point >= 0xdc00 && point < 0xe000) fail("half a surrogate pair");
    if (point >= 0xd800 && point < 0xdc00) {
      if (text_.substr(at_, 2) != "\\u") fail("half a surrogate pair");
      at_ += 2;
      const std::uint32_t low = four_hex();
      if (low < 0xdc00 || low >= 0xe000) fail("half a surrogate pair");
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(out, point);
  }

  Json string() {
    Json value;
    value.kind_ = Json::Kind::string;
    const std::size_t start = at_++;
    while (peek() != '"') {
      if (at_ >= text_.size() || static_cast<unsigned char>(peek()) < 0x20) fail("a string without an end");
      if (peek() == '\\') {
        escape(value.decoded_);
      } else {
        value.decoded_.push_back(text_[at_++]);
      }
    }
    ++at_;
    value.text_ = text_.substr(start, at_ - start);
    return value;
  }

  Json array(std::size_t depth) {
    Json value;
    value.kind_ = Json::Kind::array;
    ++at_;
    if (taken(']')) return value;
    do {
      value.items_.push_back(read(depth + 1));
    } while (taken(','));
    if (!taken(']')) fail("an array without an end");
    return value;
  }

  Json object(std::size_t depth) {
    Json value;
    value.kind_ = Json::Kind::object;
    ++at_;
    if (taken('}')) return value;
    do {
      skip_space();
      if (peek() != '"') fail("a key is missing");
      Json key = string();
      if (!value.members_.empty() && key.decoded_ <= value.members_.back().first.decoded_) {
        fail("keys are not sorted, or one stands twice");
      }
      if (!taken(':')) fail("a colon is missing");
      value.members_.emplace_back(std::move(key), read(depth + 1));
    } while (taken(','));
    if (!taken('}')) fail("an object without an end");
    return value;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).document(); }

bool Json::boolean() const {
  if (kind_ != Kind::boolean) throw Error("expected true or false");
  return text_ == "true";
}

std::size_t Json::whole() const {
  const bool fits = kind_ == Kind::number && text_.size() <= 15;
  if (!fits || !std::all_of(text_.begin(), text_.end(), is_digit)) throw Error("expected a whole number");
  std::size_t value = 0;
  for (const char digit : text_) value = value * 10 + static_cast<std::size_t>(digit - '0');
  return value;
}

const std::string& Json::string() const {
  if (kind_ != Kind::string) throw Error("expected a string");
  return decoded_;
}

const std::vector<Json>& Json::items() const {
  if (kind_ != Kind::array) throw Error("expected an array");
  return items_;
}

const Json* Json::find(std::string_view key) const {
  if (kind_ != Kind::object) throw Error("expected an object");
  for (const auto& [name, value] : members_) {
    if (name.decoded_ == key) return &value;
  }
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  const Json* found = find(key);
  if (found == nullptr) throw Error("it lacks " + std::string(key));
  return *found;
}

std::string Json::indented() const {
  std::string out;
  write_indented(out, 0);
  return out;
}

std::string Json::compact(std::string_view left_out) const {
  std::string out;
  write_compact(out, left_out);
  return out;
}

void Json::write_indented(std::string& out, std::size_t depth) const {
  const bool is_array = kind_ == Kind::array;
  if (!is_array && kind_ != Kind::object) {
    out += text_;
    return;
  }
  const std::size_t count = is_array ? items_.size() : members_.size();
  out.push_back(is_array ? '[' : '{');
  for (std::size_t i = 0; i < count; ++i) {
    out += i == 0 ? "\n" : ",\n";
    out.append(2 * (depth + 1), ' ');
    if (!is_array) out += members_[i].first.text_ + ": ";
    (is_array ? items_[i] : members_[i].second).write_indented(out, depth + 1);
  }
  if (count != 0) out.append("\n").append(2 * depth, ' ');
  out.push_back(is_array ? ']' : '}');
}

void Json::write_compact(std::string& out, std::string_view left_out) const {
  const bool is_array = kind_ == Kind::array;
  if (!is_array && kind_ != Kind::object) {
    out += text_;
    return;
  }
  out.push_back(is_array ? '[' : '{');
  const std::size_t start = out.size();
  for (const Json& item : items_) {
    if (out.size() != start) out.push_back(',');
    item.write_compact(out, {});
  }
  for (const auto& [key, value] : members_) {
    if (!left_out.empty() && key.decoded_ == left_out) continue;
    if (out.size() != start) out.push_back(',');
    out += key.text_ + ":";
    value.write_compact(out, {});
  }
  out.push_back(is_array ? ']' : '}');
}

}  // namespace netvlad
