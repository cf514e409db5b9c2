// Loads a model folder, writes text that goes on from a prompt, and measures how well the model predicts a file.
//
//   generate MODEL PROMPT [FILE]
#include <megalodon/error.h>
#include <megalodon/generate.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate MODEL PROMPT [FILE]\n";
    return 2;
  }
  try {
    megalodon::LanguageModel model(argv[1]);
    megalodon::GenerateOptions options;
    options.max_tokens = 200;
    options.sampler.temperature = 0.8;
    options.sampler.seed = 1;
    std::cout << argv[2];
    model.generate(argv[2], options, [](const std::string& text) {
      std::cout << text << std::flush;
      return true;  // go on
    });
    std::cout << "\n";
    if (argc > 3) std::cout << model.evaluate({argv[3]}).bits_per_byte() << " bits per byte of " << argv[3] << "\n";
  } catch (const megalodon::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
