// The browser of the tests.

import { chromium } from 'playwright-core';

/**
 * Starts Chromium without the sandbox. A container may lack the permissions for the sandbox, and
 * the tests open only the page of the project.
 */
export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM,
    timeout: 180_000,
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
  });
