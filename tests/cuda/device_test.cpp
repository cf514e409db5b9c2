#include "cuda/device.h"

#include <vector>

#include "support/both_devices.h"

namespace megalodon {
namespace {

using DeviceTest = test::OnGpu;

TEST_F(DeviceTest, MemoryIsZeroedAndCopiesBothWays) {
  Context ctx(test::the_gpu(), 1);
  const Buffer buffer(1 << 20, "test", ctx.accelerator());
  std::vector<float> host(1000, 1.0F);
  const Tensor on_host(host.data(), {1000});
  const Tensor on_device(buffer.data(), DType::F32, {1000}, Device::Cuda);
  ctx.copy(on_device, on_host);
  EXPECT_EQ(host, std::vector<float>(1000, 0.0F));
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<float>(i);
  const std::vector<float> written = host;
  ctx.copy(on_host, on_device);
  host.assign(1000, -1.0F);
  ctx.copy(on_device, on_host);
  EXPECT_EQ(host, written);
}

TEST_F(DeviceTest, TooLargeABufferIsRefusedByName) {
  const AcceleratorPtr gpu = test::the_gpu();
  try {
    const Buffer buffer(gpu->free_bytes() + (std::size_t{1} << 40), "activations", gpu);
    FAIL() << "was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::OutOfMemory);
    EXPECT_NE(std::string(error.what()).find("activations"), std::string::npos) << error.what();
  }
  const Buffer small(1024, "small", gpu);  // the refusal leaves no error behind
  EXPECT_NE(small.data(), nullptr);
}

}  // namespace
}  // namespace megalodon
