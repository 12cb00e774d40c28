// What a job says about its model and its fit, checked and in the terms of kernels/train.
#pragma once
#include "actors/training/material.hpp"
#include "messages/training.capnp.h"
#include "runtime/base/result.hpp"

namespace falaj::training {

// Family, fit, schedule and the rest of Material that is neither data nor an imported model. Errors name the word.
Status read_words(messages::TrainingJob::Reader job, Material& into);

}  // namespace falaj::training
