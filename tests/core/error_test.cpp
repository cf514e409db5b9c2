#include "megalodon/error.h"

#include <gtest/gtest.h>

namespace megalodon {
namespace {

TEST(ErrorTest, IsOneLineOfItsParts) {
  EXPECT_STREQ(Error(ErrorKind::Io, "what", "where", "hint").what(), "where: what. hint");
  EXPECT_STREQ(Error(ErrorKind::Io, "what").what(), "what");
}

TEST(ErrorTest, ShowsNoControlCharacterOfAFile) {
  const Error error(ErrorKind::Corrupt, "unknown key \"a\nb\x1b[2J\x7f\"", "f\tg", "\xc3\xa9\r");
  EXPECT_STREQ(error.what(), "f?g: unknown key \"a?b?[2J?\". \xc3\xa9?");
}

}  // namespace
}  // namespace megalodon
