# The tests of kernels, or those that KERNEL_TESTS names, for the scripts beside this one.
kernel_tests=${KERNEL_TESTS:-$(echo \
  tests/test_{dense,max_pool2d,avg_pool2d,pad2d,activations,batch_norm,pointwise}.py \
  tests/test_{optimizer_kernels,warp_affine,sequence,threads,conv2d,conv2d_winograd,conv2d_pool}.py)}
