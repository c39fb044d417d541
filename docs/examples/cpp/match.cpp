// match APP CROP... > answers.csv
//
// APP is the folder that `skumatch export --with-resize` and `skumatch gallery export` wrote. Crops are JPEG or PNG.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#include <png.h>
#include <turbojpeg.h>

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
constexpr size_t kTop = 5;

struct Picture {
  int64_t height = 0, width = 0;
  Bytes rgb;  // row by row
};

Bytes bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  Bytes found{std::istreambuf_iterator<char>(file), {}};
  if (!file || found.empty()) throw std::runtime_error("cannot read " + path.string());
  return found;
}

// The orientation, 1 to 8, that a JPEG's EXIF block gives; 1 without one.
int orientation(const Bytes& file) {
  auto big = [&](size_t at) -> uint32_t { return at + 2 <= file.size() ? file[at] << 8 | file[at + 1] : 0; };
  for (size_t at = 2; at + 4 < file.size() && file[at] == 0xFF && file[at + 1] != 0xDA; at += 2 + big(at + 2)) {
    const size_t tiff = at + 10;
    if (file[at + 1] != 0xE1 || big(at + 4) != 0x4578) continue;  // "Ex" of "Exif"
    const bool little = big(tiff) == 0x4949;
    auto u16 = [&](size_t from) { return little ? (big(from) >> 8 | (big(from) & 255) << 8) : big(from); };
    auto u32 = [&](size_t from) { return little ? u16(from + 2) << 16 | u16(from) : u16(from) << 16 | u16(from + 2); };
    const size_t first = tiff + u32(tiff + 4);
    for (size_t entry = first + 2; entry < first + 2 + 12 * size_t{u16(first)}; entry += 12)
      if (u16(entry) == 0x0112) return u16(entry + 8) >= 1 && u16(entry + 8) <= 8 ? u16(entry + 8) : 1;
  }
  return 1;
}

Picture upright(Picture picture, int how) {
  if (how == 1) return picture;
  Picture turned{picture.height, picture.width, Bytes(picture.rgb.size())};
  if (how >= 5) std::swap(turned.height, turned.width);
  auto to = turned.rgb.begin();
  for (int64_t y = 0; y < turned.height; ++y)
    for (int64_t x = 0; x < turned.width; ++x) {
      int64_t row = how == 3 || how == 4 || how == 7 || how == 8 ? turned.height - 1 - y : y;
      int64_t column = how == 2 || how == 3 || how == 6 || how == 7 ? turned.width - 1 - x : x;
      if (how >= 5) std::swap(row, column);
      to = std::copy_n(picture.rgb.begin() + 3 * (row * picture.width + column), 3, to);
    }
  return turned;
}

Picture read_jpeg(const Bytes& file) {
  const std::unique_ptr<void, int (*)(void*)> decoder(tjInitDecompress(), tjDestroy);
  auto check = [&](int code) {
    if (code != 0) throw std::runtime_error(tjGetErrorStr2(decoder.get()));
  };
  int width, height, sampling, colours;
  const auto size = static_cast<unsigned long>(file.size());
  check(tjDecompressHeader3(decoder.get(), file.data(), size, &width, &height, &sampling, &colours));
  Picture picture{height, width, Bytes(size_t{3} * width * height)};
  check(tjDecompress2(decoder.get(), file.data(), size, picture.rgb.data(), width, 0, height, TJPF_RGB,
                      TJFLAG_ACCURATEDCT));
  return upright(std::move(picture), orientation(file));
}

Picture read_png(const Bytes& file) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_memory(&image, file.data(), file.size())) throw std::runtime_error(image.message);
  image.format = PNG_FORMAT_RGBA;
  Bytes rgba(PNG_IMAGE_SIZE(image));
  if (!png_image_finish_read(&image, nullptr, rgba.data(), 0, nullptr)) throw std::runtime_error(image.message);
  Picture picture{image.height, image.width, {}};
  for (size_t at = 0; at < rgba.size(); at += 4)  // laid on white
    for (size_t i = at; i < at + 3; ++i) {
      const int opacity = rgba[at + 3];
      picture.rgb.push_back(static_cast<uint8_t>((rgba[i] * opacity + 255 * (255 - opacity) + 127) / 255));
    }
  return picture;
}

Picture read_picture(const fs::path& path) {
  const Bytes file = bytes_of(path);
  return file[0] == 0x89 ? read_png(file) : read_jpeg(file);
}

class Recogniser {
 public:
  explicit Recogniser(const fs::path& app)
      : session_(environment_, (app / "model.resize.onnx").c_str(), Ort::SessionOptions()) {
    const auto gallery = nlohmann::json::parse(bytes_of(app / "views.json"));
    Ort::AllocatorWithDefaultOptions allocator;
    const auto said = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("skumatch", allocator);
    if (!said || nlohmann::json::parse(said.get())["spec"]["digest"] != gallery["model"]["digest"])
      throw std::runtime_error("model.resize.onnx and views.json are not of one model: export both again");
    dim_ = gallery["dim"];
    rows_ = gallery["rows"].get<std::vector<size_t>>();
    for (const auto& entry : gallery["skus"]) skus_.push_back(entry["sku"]);
    const Bytes raw = bytes_of(app / "vectors.f32");
    if (raw.size() != rows_.size() * dim_ * sizeof(float))
      throw std::runtime_error("vectors.f32 and views.json do not belong together: export the gallery again");
    vectors_.resize(rows_.size() * dim_);
    std::copy(raw.begin(), raw.end(), reinterpret_cast<uint8_t*>(vectors_.data()));  // on a little-endian machine
    for (size_t i = 0; i < session_.GetOutputCount(); ++i)
      if (session_.GetOutputNameAllocated(i, allocator).get() == std::string("queries")) output_ = "queries";
  }

  // The nearest SKUs, best first, of an upright picture.
  std::vector<std::pair<std::string, float>> match(Picture& picture) {
    const int64_t shape[] = {picture.height, picture.width, 3};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto image = Ort::Value::CreateTensor<uint8_t>(memory, picture.rgb.data(), picture.rgb.size(), shape, 3);
    const char* input = "image";
    const auto found = session_.Run(Ort::RunOptions(), &input, &image, 1, &output_, 1);
    const float* crop = found[0].GetTensorData<float>();
    std::vector<std::pair<std::string, float>> best;
    for (const auto& sku : skus_) best.emplace_back(sku, -std::numeric_limits<float>::infinity());
    for (size_t row = 0; row < rows_.size(); ++row) {
      float& score = best[rows_[row]].second;  // a SKU's score is that of its best view
      score = std::max(score, std::inner_product(crop, crop + dim_, vectors_.begin() + row * dim_, 0.0f));
    }
    std::stable_sort(best.begin(), best.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    best.resize(std::min(best.size(), kTop));
    return best;
  }

 private:
  Ort::Env environment_;
  Ort::Session session_;
  size_t dim_ = 0;
  std::vector<size_t> rows_;
  std::vector<std::string> skus_;
  std::vector<float> vectors_;
  const char* output_ = "embeddings";
};

std::string cell(const std::string& text) {
  if (text.find_first_of("\",\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + '"';
}

int main(int count, char** arguments) try {
  if (count < 3) {
    std::cerr << "usage: match APP CROP...\n";
    return 1;
  }
  Recogniser recogniser(arguments[1]);
  std::cout << "crop,rank,sku,score\n" << std::fixed;
  int failed = 0;
  for (int i = 2; i < count; ++i) {
    Picture picture;
    try {
      picture = read_picture(arguments[i]);
    } catch (const std::exception& error) {
      std::cerr << "error: " << arguments[i] << ": " << error.what() << '\n';
      failed = 1;
      continue;
    }
    int rank = 0;
    for (const auto& [sku, score] : recogniser.match(picture))
      std::cout << cell(arguments[i]) << ',' << ++rank << ',' << cell(sku) << ',' << score << '\n';
  }
  return failed;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
