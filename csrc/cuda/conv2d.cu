// 2-D convolution, forward and backward: which kernel does what.
//
//   conv2d                        y  = relu(conv(x, w) + b)              overwrites y
//   conv2d_backward_data          dx = conv^T(dy, w)                     overwrites dx
//   conv2d_backward_weights       dw = x * dy, db = sum dy               overwrites dw, db
//   conv2d_pool                   y  = dropout(max_pool(relu(conv + b))) overwrites y, winner
//   conv2d_pool_backward_data     dx                                     overwrites dx
//   conv2d_pool_backward_weights  dw, db                                 overwrites dw, db
//
// The choice depends on the shape and the math mode, never on the device.
#include <type_traits>

#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

constexpr int64_t below_2_31 = int64_t{1} << 31;

bool is_3x3(const Conv2dShape& s) {
  return s.kh == 3 && s.kw == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
         s.dilation_w == 1 && s.groups == 1;
}

// Sizes that the fast kernels compute with in 32 bits.
bool fits_32_bits(const Conv2dShape& s) {
  constexpr int64_t most_side = 1 << 14;  // padded sides are kept in 16 bits
  for (int64_t side : {s.h, s.w, s.oh, s.ow, s.pad_top, s.pad_left, s.kh * s.dilation_h,
                       s.kw * s.dilation_w, s.oh * s.stride_h, s.ow * s.stride_w}) {
    if (side > most_side) return false;
  }
  // Blocks of 8 x 16 pixels or less count as whole ones.
  return s.n * s.h * s.w * s.c < below_2_31 && s.n * s.oh * s.ow * s.oc < below_2_31 &&
         s.n * (s.oh + 8) * (s.ow + 16) < below_2_31 && s.n * (s.h + 8) * (s.w + 16) < below_2_31 &&
         s.kh * s.kw * s.c * s.oc < below_2_31;
}

int narrow(int64_t value) { return static_cast<int>(value); }

Plain plain(const Conv2dShape& s, const float* dy) {
  return {dy, narrow(s.oh), narrow(s.ow), narrow(s.oc)};
}

Pooled pooled(const ConvPoolShape& s, float scale, const float* dy, const uint8_t* winner) {
  return {{dy, narrow(s.ph), narrow(s.pw), narrow(s.conv.oc)}, winner, scale};
}

// The fast kernels read and write 16 bytes at a time (4 of a winner). Arrays that do not start at
// such an address are rare, views into others, and go through a copy that does, so that the sums
// are the same wherever an array lies.
template <class T>
void copy(T* to, const T* from, int64_t count) {
  check(cudaMemcpyAsync(to, from, sizeof(T) * count, cudaMemcpyDeviceToDevice, stream()),
        "copy of an array that is not aligned to 16 bytes");
}

template <class T>
class AlignedInput {
 public:
  AlignedInput(const T* data, int64_t count)
      : copy_(aligned_to_four(data) ? 0 : sizeof(T) * count), data_(data) {
    if (aligned_to_four(data)) return;
    copy(copy_.template at<T>(), data, count);
    data_ = copy_.template at<T>();
  }
  operator const T*() const { return data_; }

 private:
  Workspace copy_;
  const T* data_;
};

template <class T>
class AlignedOutput {
 public:
  AlignedOutput(T* data, int64_t count)
      : copy_(aligned_to_four(data) ? 0 : sizeof(T) * count), data_(data), count_(count) {}
  operator T*() const { return aligned_to_four(data_) ? data_ : copy_.template at<T>(); }
  // After the kernel.
  void commit() const {
    if (!aligned_to_four(data_)) copy(data_, copy_.template at<T>(), count_);
  }

 private:
  Workspace copy_;
  T* data_;
  int64_t count_;
};

int64_t x_size(const Conv2dShape& s) { return s.n * s.h * s.w * s.c; }
int64_t y_size(const Conv2dShape& s) { return s.n * s.oh * s.ow * s.oc; }
int64_t w_size(const Conv2dShape& s) { return s.kh * s.kw * (s.c / s.groups) * s.oc; }
int64_t y_size(const ConvPoolShape& s) { return s.conv.n * s.ph * s.pw * s.conv.oc; }

bool tf32() { return math_mode() == MathMode::tf32; }

template <class Out>
void forward(const Conv2dShape& s, const float* x, const float* w, const Out& out) {
  if (tf32() && supports_tf32(s)) {
    conv2d_tf32(s, x, w, out);
  } else if (supports_gemm(s)) {
    conv2d_gemm(s, x, w, out);
  } else {
    conv2d_direct(s, x, w, out);
  }
}

// What is behind a fused pooling is not looked for among the depthwise kernels.
template <class Source>
constexpr bool is_pooled = std::is_same_v<Source, Pooled>;

template <class Source>
void backward_data(const Conv2dShape& s, const Source& dy, const float* w, float* dx) {
  if (tf32() && supports_tf32(s)) {
    conv2d_tf32_backward_data(s, dy, w, dx);
  } else if (supports_gemm_backward_data(s)) {
    conv2d_gemm_backward_data(s, dy, w, dx);
  } else {
    if constexpr (!is_pooled<Source>) {
      if (supports_depthwise(s)) return conv2d_depthwise_backward_data(s, dy, w, dx);
    }
    conv2d_direct_backward_data(s, dy, w, dx);
  }
}

template <class Source>
void backward_weights(const Conv2dShape& s, const Source& dy, const float* x, float* dw,
                      float* db) {
  if (supports_first(s)) {
    conv2d_first_backward_weights(s, dy, x, dw, db);
  } else if (tf32() && supports_tf32(s)) {
    conv2d_tf32_backward_weights(s, dy, x, dw, db);
  } else if (supports_gemm(s)) {
    conv2d_gemm_backward_weights(s, dy, x, dw, db);
  } else {
    if constexpr (!is_pooled<Source>) {
      if (supports_depthwise(s)) return conv2d_depthwise_backward_weights(s, dy, x, dw, db);
    }
    conv2d_direct_backward_weights(s, dy, x, dw, db);
  }
}

void clear(float* data, int64_t count) {
  if (data == nullptr) return;
  check(cudaMemsetAsync(data, 0, sizeof(float) * count, stream()), "conv2d_backward_weights");
}

}  // namespace

bool supports_gemm(const Conv2dShape& s) {
  constexpr int64_t most_taps = 15;  // along an axis: a bit each
  return s.groups == 1 && s.c % 4 == 0 && s.oc % 4 == 0 && s.kh <= most_taps && s.kw <= most_taps &&
         fits_32_bits(s);
}

bool supports_gemm_backward_data(const Conv2dShape& s) {
  return s.stride_h == 1 && s.stride_w == 1 && supports_gemm(s);
}

bool supports_first(const Conv2dShape& s) {
  return is_3x3(s) && s.c == 3 && s.oc % 4 == 0 && fits_32_bits(s);
}

bool supports_tf32(const Conv2dShape& s) {
  return is_3x3(s) && s.c % 8 == 0 && s.oc % 8 == 0 && fits_32_bits(s);
}

bool supports_depthwise(const Conv2dShape& s) {
  constexpr int64_t most_taps = 1 << 16;  // a grid has limits
  return s.groups > 1 && s.groups == s.c && s.groups == s.oc && s.c % 4 == 0 &&
         s.kh * s.kw <= most_taps && fits_32_bits(s);
}

Taps forward_taps(const Conv2dShape& s) {
  return {narrow(s.h),          narrow(s.w),         narrow(s.c),       narrow(s.oh),
          narrow(s.ow),         narrow(s.oc),        narrow(s.kh),      narrow(s.kw),
          narrow(s.stride_h),   narrow(s.stride_w),  narrow(s.pad_top), narrow(s.pad_left),
          narrow(s.dilation_h), narrow(s.dilation_w)};
}

Taps backward_data_taps(const Conv2dShape& s) {
  Taps t = forward_taps(s);
  t.h = narrow(s.oh), t.w = narrow(s.ow), t.c = narrow(s.oc);
  t.oh = narrow(s.h), t.ow = narrow(s.w), t.oc = narrow(s.c);
  t.pad_top = narrow((s.kh - 1) * s.dilation_h - s.pad_top);
  t.pad_left = narrow((s.kw - 1) * s.dilation_w - s.pad_left);
  return t;
}

void conv2d(const Conv2dShape& s, Activation activation, const float* x_, const float* w_,
            const float* b, float* y_) {
  if (s.n == 0) return;
  const AlignedInput x(x_, x_size(s)), w(w_, w_size(s));
  const AlignedOutput y(y_, y_size(s));
  const Output out{b, activation == Activation::relu, y};
  if (supports_first(s)) {
    conv2d_first(s, x, w, out);
  } else if (supports_depthwise(s)) {
    conv2d_depthwise(s, x, w, out);
  } else {
    forward(s, x, w, out);
  }
  y.commit();
}

void conv2d_backward_data(const Conv2dShape& s, Activation activation, const float* dy_,
                          const float* y_, const float* w_, float* dx_) {
  if (s.n == 0) return;
  const AlignedInput dy(dy_, y_size(s)), w(w_, w_size(s));
  const AlignedOutput dx(dx_, x_size(s));
  if (activation == Activation::relu) {
    const AlignedInput y(y_, y_size(s));
    backward_data(s, Masked{plain(s, dy), y}, w, dx);
  } else {
    backward_data(s, plain(s, dy), w, dx);
  }
  dx.commit();
}

void conv2d_backward_weights(const Conv2dShape& s, Activation activation, const float* dy_,
                             const float* y_, const float* x_, float* dw, float* db) {
  if (s.n == 0) {
    clear(dw, w_size(s));
    clear(db, s.oc);
    return;
  }
  const AlignedInput dy(dy_, y_size(s)), x(x_, x_size(s));
  if (activation == Activation::relu) {
    const AlignedInput y(y_, y_size(s));
    backward_weights(s, Masked{plain(s, dy), y}, x, dw, db);
  } else {
    backward_weights(s, plain(s, dy), x, dw, db);
  }
}

void conv2d_pool(const ConvPoolShape& s, const Dropout& dropout, const float* x_, const float* w_,
                 const float* b, float* y_, uint8_t* winner_) {
  if (s.conv.n == 0) return;
  const AlignedInput x(x_, x_size(s.conv)), w(w_, w_size(s.conv));
  const AlignedOutput y(y_, y_size(s));
  const AlignedOutput winner(winner_, y_size(s));
  forward(s.conv, x, w, PooledOutput{b, y, winner, narrow(s.ph), narrow(s.pw), dropout});
  y.commit();
  winner.commit();
}

void conv2d_pool_backward_data(const ConvPoolShape& s, float scale, const float* dy_,
                               const uint8_t* winner_, const float* w_, float* dx_) {
  if (s.conv.n == 0) return;
  const AlignedInput dy(dy_, y_size(s)), w(w_, w_size(s.conv));
  const AlignedInput winner(winner_, y_size(s));
  const AlignedOutput dx(dx_, x_size(s.conv));
  backward_data(s.conv, pooled(s, scale, dy, winner), w, dx);
  dx.commit();
}

void conv2d_pool_backward_weights(const ConvPoolShape& s, float scale, const float* dy_,
                                  const uint8_t* winner_, const float* x_, float* dw, float* db) {
  if (s.conv.n == 0) {
    clear(dw, w_size(s.conv));
    clear(db, s.conv.oc);
    return;
  }
  const AlignedInput dy(dy_, y_size(s)), x(x_, x_size(s.conv));
  const AlignedInput winner(winner_, y_size(s));
  backward_weights(s.conv, pooled(s, scale, dy, winner), x, dw, db);
}

}  // namespace pyconv::cuda
